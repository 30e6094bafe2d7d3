"""The land floor: sources, landing, validation, snapshots, and the rows that were known at a moment."""

import os

# Both read these when they are imported; nothing that we run reports to anybody.
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
