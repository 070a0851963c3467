"""The pages of the dashboard. Each module has the routes of one page: the page itself and its forms."""
