"""Files from elsewhere: archives of annotations, and images."""
