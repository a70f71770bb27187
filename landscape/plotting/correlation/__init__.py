"""Pictures of flatness against forgetting: what they share, for papers, for looking around."""
