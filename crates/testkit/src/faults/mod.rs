//! Work that goes on while things break, and what must be true of it afterwards, all seen as a client sees it.
