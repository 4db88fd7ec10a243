"""What a model's text is like: arms by training data, judged by every metric."""
