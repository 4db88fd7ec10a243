"""Statistics, metrics, cost accounting, model selection and classical baselines."""
