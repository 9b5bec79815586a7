"""From a request to an answer: reads what the request names, builds the problem, solves it and says what is known."""
