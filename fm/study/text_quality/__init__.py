"""Study of generated text: quality and diversity by training set, sampling and metric."""
