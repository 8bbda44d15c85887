"""Training code of others: MLflow projects, run in the training container."""
