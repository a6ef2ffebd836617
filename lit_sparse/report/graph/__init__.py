"""Attribution graphs: their page, plot and table."""
