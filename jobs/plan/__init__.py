"""What a study asks for: its file, validated, and the list of jobs that it makes. Pure but for reading the file."""
