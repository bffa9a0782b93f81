"""What tests of several rooms import: builders of logs, models and states, and processes to run code in."""
