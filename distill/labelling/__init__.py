"""A teacher's labels of a frame set: forecast, written, sealed and audited."""
