"""Side by side: `lewm compare objectives | encoders | baselines` train and measure rows, `runs` reads two results."""
