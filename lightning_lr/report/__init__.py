"""The report: the story of runs in a terminal, as JSON, or as one page of HTML."""
