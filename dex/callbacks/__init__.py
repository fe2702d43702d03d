"""What happens beside the training step: checkpoints, previews, the monitor, speed."""
