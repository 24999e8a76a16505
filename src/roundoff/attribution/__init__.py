"""Where a deviation comes from: over the sites of any operator."""
