"""The scheduler: a frozen snapshot in, bindings and explained refusals out. Pure: values and `now` in, values out."""
