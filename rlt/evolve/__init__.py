"""`rlt evolve`: an archive of teachers, in the manner of the Darwin Goedel Machine (arXiv 2505.22954). See docs/archive.md."""
