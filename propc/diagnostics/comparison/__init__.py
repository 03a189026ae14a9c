"""Statistics for users: estimators beside each other, and how much of what a site sends is signal."""
