"""Talking-head data: the shard schema, reading clips, augmentation, and the datamodules."""
