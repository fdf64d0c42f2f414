"""The callbacks: Lightning's hooks; they gather, ask a policy, and act."""
