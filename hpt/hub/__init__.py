"""A trained model as others get it: its folder, its card, pushing both to the Hub, and leaderboards over cards."""
