# Varnish with its built-in policy: streaming and collapsing are its defaults.
vcl 4.1;
backend fast { .host = "127.0.0.1"; .port = "@fast@"; }
backend slow { .host = "127.0.0.1"; .port = "@slow@"; }
sub vcl_recv {
    if (req.url ~ "^/api/slow/") { set req.backend_hint = slow; }
    else { set req.backend_hint = fast; }
}
sub vcl_backend_response {
    set beresp.ttl = 30d;
}
