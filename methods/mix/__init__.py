"""Further data that is trained on beside the data set, or in place of it: `mix=`."""
