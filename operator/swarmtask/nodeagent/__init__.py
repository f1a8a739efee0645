"""What one machine tells of itself, and the fence that stops its work when nobody hears it any more."""
