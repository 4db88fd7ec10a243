"""What texts are like: one family of metrics a file, all over a fixed number of texts."""
