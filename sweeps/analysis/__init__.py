"""Statistics of a sweep: plain tables in, plain tables out; no files, no figures, no Ray."""
