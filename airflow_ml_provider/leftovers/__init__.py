"""What stages in pods have left behind: found, judged, and removed if one wants. The reaper's command and operator."""
