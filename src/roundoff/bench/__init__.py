"""Sweeps: `plan` says which cells, `identity` which cell is which, `measure` does one,
`sweep` runs a plan into a run directory."""
