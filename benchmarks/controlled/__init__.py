"""The controlled experiment on synthetic heads: variants, their measurement, and their table."""
