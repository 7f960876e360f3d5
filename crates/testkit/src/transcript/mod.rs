//! Golden transcripts of interleaved sessions.
