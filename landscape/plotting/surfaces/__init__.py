"""Pictures of loss surfaces: what they share, for papers (matplotlib), for looking around (plotly)."""
