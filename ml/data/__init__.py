"""The land floor: sources, landing, validation, snapshots, and the rows that were known at a moment."""
