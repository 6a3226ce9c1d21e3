"""Learning invented formats from ten examples: tasks, arms, and what each arm scores."""
