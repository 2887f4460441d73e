"""The store on an API server. Nothing outside this folder imports a Kubernetes client or speaks HTTP to the server."""
