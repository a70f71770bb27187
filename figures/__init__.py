"""Each script turns an analysis's table into one figure. They use the public API only."""
