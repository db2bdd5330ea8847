"""A capture judged by the real program under a policy, on the capture's own clock."""
