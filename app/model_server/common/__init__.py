"""What both programs use: the settings, the models on disk, metrics, logs, and how the two speak."""
