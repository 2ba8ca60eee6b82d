"""One page of what runs did: `page` writes it, the other modules derive what `templates` show."""
