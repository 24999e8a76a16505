"""Reaching into running code: `spy` records what really ran."""
