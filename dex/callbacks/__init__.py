"""What happens beside the training step: previews, speed, the final result."""
