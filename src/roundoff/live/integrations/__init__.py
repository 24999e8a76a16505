"""Callbacks that attach a monitor to somebody's trainer, one file each."""
