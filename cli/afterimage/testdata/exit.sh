#!/bin/sh
case "$1" in
kill) kill -9 $$ ;;
hang) sleep 1000 ;;
environment)
	test -n "$AFTERIMAGE_POINT" && test -n "$AFTERIMAGE_POINT_TIME" && test "$AFTERIMAGE_GROUP" = default/web &&
		test "$AFTERIMAGE_URI" = "$AFTERIMAGE_URI_ROOT" && test -n "$AFTERIMAGE_URI" && test "$AFTERIMAGE_VOLUME" = root ;;
*) exit "$1" ;;
esac
