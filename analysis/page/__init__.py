"""The page to explore: runs in, one self-contained HTML file out, or the same page served on loopback while a run goes on."""
