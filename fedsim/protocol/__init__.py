"""What crosses between the server app and the client app."""
