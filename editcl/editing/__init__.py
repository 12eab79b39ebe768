"""Editing: keys, values, covariance, closed-form updates, and the verbs over them."""
