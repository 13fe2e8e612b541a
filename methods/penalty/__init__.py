"""What holds the weights, or the predictions, near those that training started from: `penalty=`."""
