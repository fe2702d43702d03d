"""From raw video to shards of talking-head clips: `python -m data_prep INPUT --out SHARDS`."""
