"""What a person runs, top to bottom: one file a job."""
