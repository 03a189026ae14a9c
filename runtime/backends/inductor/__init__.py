"""The backend that compiles stages with torch's inductor."""
