"""The native dialect (section 2 of the specification): its frames, and one connection without a socket."""
