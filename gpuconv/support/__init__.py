"""What has nothing to do with convolution: checks of arguments, files, pages of HTML, random numbers."""
